# CUDA, where there is some: libprophet_cuda.so for devices (PROPHET_CUDA), and the same sources over
# an emulated runtime for tests (PROPHET_CUDA_EMULATION). Nothing else is linked to CUDA.
set(PROPHET_CUDA AUTO CACHE STRING "the CUDA library: AUTO (when nvcc is found), ON (required), OFF")
set_property(CACHE PROPHET_CUDA PROPERTY STRINGS AUTO ON OFF)
option(PROPHET_CUDA_EMULATION "build the CUDA library over the emulated runtime, for tests" OFF)

if(NOT PROPHET_CUDA STREQUAL "OFF")
  # Often installed and not on PATH; CMake alone would miss it there.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(PROPHET_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
                 PATH_SUFFIXES bin)
    if(PROPHET_NVCC)
      set(CMAKE_CUDA_COMPILER ${PROPHET_NVCC})
    endif()
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES OFF) # else CMake keeps a choice of its own
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  set(lacks "no nvcc was found: set CUDA_HOME")
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(lacks "")
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
      set(lacks "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.0")
    endif()
  endif()
  if(NOT lacks)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # older CMake does not know that nvcc has it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    # Machine code for each; the last also as PTX, for what is newer than all of them.
    if(NOT CMAKE_CUDA_ARCHITECTURES AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
    elseif(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90-real 120)
    endif()
    find_package(CUDAToolkit REQUIRED)
    file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/device/cuda/*_cuda.cc csrc/device/cuda/*_cuda.cu
      csrc/kernels/*_cuda.cu)
    add_library(prophet_cuda MODULE ${cuda_sources})
    target_include_directories(prophet_cuda PRIVATE csrc)
    set_target_properties(prophet_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static
      CUDA_VISIBILITY_PRESET hidden)
    target_link_libraries(prophet_cuda PRIVATE CUDA::cudart_static)
    target_link_options(prophet_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
    install(TARGETS prophet_cuda DESTINATION .)
    message(STATUS "CUDA library: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}; "
      "PROPHET_CUDA=OFF leaves it out")
  elseif(PROPHET_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PROPHET_CUDA=ON, but ${lacks}")
  else()
    message(STATUS "no CUDA library in this build (${lacks})")
  endif()
endif()

if(PROPHET_CUDA_EMULATION)
  find_path(PROPHET_CUDA_INCLUDE cuda_runtime_api.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
            PATH_SUFFIXES include)
  if(NOT PROPHET_CUDA_INCLUDE)
    message(FATAL_ERROR "PROPHET_CUDA_EMULATION=ON needs the headers of a CUDA toolkit: set CUDA_HOME")
  endif()
  add_subdirectory(tests/cuda_emulation)
endif()
